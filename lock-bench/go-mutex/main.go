// Takes and releases locks with etcd's own concurrency.Mutex, as a worker of the benchmark: the protocol is described in
// lock-bench/src/protocol.rs.
//
// Built with Debian's golang-go and golang-etcd-server-dev: GO111MODULE=off GOPATH=/usr/share/gocode go build main.go
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
)

type tally struct {
	Event      string     `json:"event"`
	Batch      int        `json:"batch"`
	WaitsNs    []int64    `json:"waits_ns"`
	CyclesNs   []int64    `json:"cycles_ns"`
	GrantsNs   [][2]int64 `json:"grants_ns"`
	Errors     int        `json:"errors"`
	FirstError *string    `json:"first_error"`
}

// The window, in nanoseconds since base; both 0 until it opens.
type course struct {
	base       time.Time
	start, end int64
	stop       int32
	hold       time.Duration
	cycles     int
}

func (c *course) counts(at time.Duration) bool {
	end := atomic.LoadInt64(&c.end)
	return int64(at) >= atomic.LoadInt64(&c.start) && int64(at) < end
}

func (c *course) open(length time.Duration) {
	now := time.Since(c.base)
	atomic.StoreInt64(&c.start, int64(now))
	atomic.StoreInt64(&c.end, int64(now+length))
}

func (c *course) goesOn(done int) bool {
	if c.cycles > 0 {
		return done < c.cycles
	}
	return atomic.LoadInt32(&c.stop) == 0
}

func (c *course) contend(mutex *concurrency.Mutex) *tally {
	result := &tally{}
	ctx := context.Background()
	for done := 0; c.goesOn(done); done++ {
		start := time.Since(c.base)
		err := mutex.Lock(ctx)
		held := time.Since(c.base)
		grant := [2]int64{time.Now().UnixNano()}
		if err == nil {
			time.Sleep(c.hold)
			grant[1] = time.Now().UnixNano()
			err = mutex.Unlock(ctx)
		}
		end := time.Since(c.base)
		if err != nil {
			result.fail(err.Error())
			time.Sleep(10 * time.Millisecond)
		} else if c.cycles > 0 || c.counts(end) {
			if c.cycles > 0 || c.hold > 0 {
				result.GrantsNs = append(result.GrantsNs, grant)
			}
			result.WaitsNs = append(result.WaitsNs, int64(held-start))
			result.CyclesNs = append(result.CyclesNs, int64(end-start))
		}
	}
	return result
}

func (t *tally) fail(message string) {
	t.Errors++
	if t.FirstError == nil {
		t.FirstError = &message
	}
}

func (t *tally) add(other *tally) {
	t.WaitsNs = append(t.WaitsNs, other.WaitsNs...)
	t.CyclesNs = append(t.CyclesNs, other.CyclesNs...)
	t.GrantsNs = append(t.GrantsNs, other.GrantsNs...)
	t.Errors += other.Errors
	if t.FirstError == nil {
		t.FirstError = other.FirstError
	}
}

func say(event interface{}) {
	line, err := json.Marshal(event)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

func failed(err error) {
	say(map[string]string{"event": "failed", "message": err.Error()})
	os.Exit(1)
}

func main() {
	url := flag.String("url", "", "where etcd is")
	prefix := flag.String("prefix", "", "what all names begin with")
	names := flag.String("names", "own", "own or shared")
	process := flag.Int("process", 0, "which of the processes this is")
	tasks := flag.Int("tasks", 1, "how many goroutines")
	flag.Int("batch", 1, "ignored")
	flag.Int("share", 0, "ignored")
	hold := flag.Int("hold-us", 0, "how long the lock is held, in microseconds")
	cycles := flag.Int("cycles", 0, "how many cycles each does; 0 for as many as the window allows")
	flag.Parse()

	endpoint := strings.TrimPrefix(*url, "etcd://")
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second})
	if err != nil {
		failed(err)
	}
	// One session for each: two acquisitions of one name through one session would both succeed.
	sessions := make([]*concurrency.Session, *tasks)
	for task := range sessions {
		if sessions[task], err = concurrency.NewSession(client); err != nil {
			failed(err)
		}
	}
	mutex := func(task int) *concurrency.Mutex {
		name := *prefix + "-one"
		if *names == "own" {
			name = fmt.Sprintf("%s-%d-%d", *prefix, *process, task)
		}
		return concurrency.NewMutex(sessions[task], name)
	}
	c := &course{base: time.Now(), hold: time.Duration(*hold) * time.Microsecond, cycles: *cycles}
	serve(c, *tasks, mutex)
	for _, session := range sessions {
		session.Close()
	}
}

func serve(c *course, tasks int, mutex func(int) *concurrency.Mutex) {
	sum := &tally{Event: "done", Batch: 1, WaitsNs: []int64{}, CyclesNs: []int64{}, GrantsNs: [][2]int64{}}
	var running sync.WaitGroup
	var summing sync.Mutex
	say(map[string]string{"event": "ready"})
	for commands := bufio.NewScanner(os.Stdin); commands.Scan(); {
		words := strings.Fields(commands.Text())
		switch words[0] {
		case "start":
			for task := 0; task < tasks; task++ {
				running.Add(1)
				go func(m *concurrency.Mutex) {
					defer running.Done()
					result := c.contend(m)
					summing.Lock()
					sum.add(result)
					summing.Unlock()
				}(mutex(task))
			}
		case "measure":
			seconds, err := strconv.ParseFloat(words[1], 64)
			if err != nil {
				failed(err)
			}
			c.open(time.Duration(seconds * float64(time.Second)))
		case "stop":
			atomic.StoreInt32(&c.stop, 1)
			running.Wait()
			say(sum)
		}
	}
}
