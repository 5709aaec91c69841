// Locks with etcd's reference mutex, told what to do line by line on standard input:
//
//	go-mutex ENDPOINT NAME
//	lock    answered by "locked REVISION", the token that the mutex reports
//	unlock  answered by "unlocked"
//
// The end of the input ends the session. Built as Debian lays Go packages out:
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go build
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
)

func main() {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{os.Args[1]}})
	check(err)
	session, err := concurrency.NewSession(client)
	check(err)
	mutex := concurrency.NewMutex(session, os.Args[2])
	ctx := context.Background()
	for input := bufio.NewScanner(os.Stdin); input.Scan(); {
		switch input.Text() {
		case "lock":
			check(mutex.Lock(ctx))
			fmt.Println("locked", mutex.Header().Revision)
		case "unlock":
			check(mutex.Unlock(ctx))
			fmt.Println("unlocked")
		}
	}
	check(session.Close())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
