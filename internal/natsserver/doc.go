// Package natsserver runs a real NATS server with JetStream inside the process.
//
// It listens on loopback and asks every client for a password, since every
// process of the machine can reach it; the service itself connects without a
// socket, with [Server.Connect]. Its streams live in one folder, which it locks:
// nats-server would let a second server write to it without a word.
package natsserver
