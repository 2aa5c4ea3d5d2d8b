package main

import "context"

func benchHTTP(context.Context, *bench) error   { return nil }
func benchReplay(context.Context, *bench) error { return nil }
func benchVerify(context.Context, *bench) error { return nil }
