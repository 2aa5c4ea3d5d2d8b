package fence

// ToldWithin is how long a creation waits at most.
const ToldWithin = toldWithin
