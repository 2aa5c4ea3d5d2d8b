package verification

// ManyKeys is the flag -keys, for the tests from outside.
var ManyKeys = manyKeys
