package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// How late an echo may be before its datagram counts as lost.
	lateLimit = 10 * time.Second
	// Rates beyond this would measure the machine.
	maxRate = 10000
)

// A Stream sends numbered datagrams to an echo and keeps account of what returns.
type Stream struct {
	mutex      sync.Mutex
	connection net.Conn
	started    time.Time
	stopped    chan struct{}
	sentAt     []time.Time
	returned   []bool
	unsent     uint64
	duplicates uint64
	lastReturn time.Time
	gap        time.Duration
}

// An Account is what a stream has seen.
type Account struct {
	Sent       uint64 `json:"sent"`
	Returned   uint64 `json:"returned"`
	Duplicates uint64 `json:"duplicates"`
	// Datagrams that the kernel refused to send.
	Unsent uint64 `json:"unsent"`
	// Those that have not returned in time; younger ones are in none of the counts but Sent.
	Lost uint64 `json:"lost"`
	// The longest time without any return since the first one, in milliseconds.
	GapMillis int64 `json:"gap_millis"`
	// The first datagrams that are lost: the milliseconds since the start when each was sent.
	LostAtMillis []int64 `json:"lost_at_millis"`
}

var streams = struct {
	sync.Mutex
	byID map[string]*Stream
}{byID: map[string]*Stream{}}

// handleStream starts (POST), tells of (GET) and ends (DELETE) the stream ?id=.
func handleStream(writer http.ResponseWriter, request *http.Request) {
	id := request.URL.Query().Get("id")
	switch request.Method {
	case http.MethodPost:
		var order struct {
			To string `json:"to"`
			// Datagrams a second.
			Rate int `json:"rate"`
		}
		if err := json.NewDecoder(request.Body).Decode(&order); err != nil {
			refuse(writer, err)
			return
		}
		if order.Rate < 1 || order.Rate > maxRate {
			refuse(writer, fmt.Errorf("rate %d: 1 to %d is allowed", order.Rate, maxRate))
			return
		}
		stream, err := startStream(order.To, order.Rate)
		if err != nil {
			refuse(writer, err)
			return
		}
		streams.Lock()
		defer streams.Unlock()
		streams.byID[id] = stream
		reply(writer, stream.account())
	case http.MethodGet, http.MethodDelete:
		streams.Lock()
		stream := streams.byID[id]
		if request.Method == http.MethodDelete {
			delete(streams.byID, id)
		}
		streams.Unlock()
		if stream == nil {
			refuse(writer, fmt.Errorf("no stream %q", id))
			return
		}
		if request.Method == http.MethodDelete {
			close(stream.stopped)
			// What is still on its way counts.
			time.Sleep(lateLimit)
			stream.connection.Close()
		}
		reply(writer, stream.account())
	default:
		refuse(writer, fmt.Errorf("method %s: POST, GET and DELETE are allowed", request.Method))
	}
}

func startStream(to string, rate int) (*Stream, error) {
	connection, err := net.Dial("udp", to)
	if err != nil {
		return nil, err
	}
	stream := &Stream{connection: connection, started: time.Now(), stopped: make(chan struct{})}
	go stream.send(time.Second / time.Duration(rate))
	go stream.receive()
	return stream, nil
}

// send keeps the rate on average: what a busy machine delays is made up for.
func (s *Stream) send(interval time.Duration) {
	packet := append(make([]byte, 8), marker...)
	for number := uint64(0); ; number++ {
		due := s.started.Add(time.Duration(number) * interval)
		select {
		case <-s.stopped:
			return
		case <-time.After(time.Until(due)):
		}
		binary.BigEndian.PutUint64(packet, number)
		s.mutex.Lock()
		s.sentAt = append(s.sentAt, time.Now())
		s.returned = append(s.returned, false)
		s.mutex.Unlock()
		if _, err := s.connection.Write(packet); err != nil {
			s.mutex.Lock()
			s.unsent++
			s.mutex.Unlock()
		}
	}
}

func (s *Stream) receive() {
	packet := make([]byte, 2048)
	for {
		n, err := s.connection.Read(packet)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// An ICMP error, told by the next call on the socket.
			continue
		}
		if n < 8 {
			continue
		}
		s.record(binary.BigEndian.Uint64(packet))
	}
}

func (s *Stream) record(number uint64) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if number >= uint64(len(s.returned)) {
		return
	}
	if s.returned[number] {
		s.duplicates++
		return
	}
	s.returned[number] = true
	now := time.Now()
	if gap := now.Sub(s.lastReturn); !s.lastReturn.IsZero() && gap > s.gap {
		s.gap = gap
	}
	s.lastReturn = now
}

func (s *Stream) account() Account {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	account := Account{
		Sent:         uint64(len(s.sentAt)),
		Duplicates:   s.duplicates,
		Unsent:       s.unsent,
		GapMillis:    s.gap.Milliseconds(),
		LostAtMillis: []int64{},
	}
	old := time.Now().Add(-lateLimit)
	for number, at := range s.sentAt {
		switch {
		case s.returned[number]:
			account.Returned++
		case !at.After(old):
			account.Lost++
			if len(account.LostAtMillis) < 20 {
				account.LostAtMillis = append(account.LostAtMillis, at.Sub(s.started).Milliseconds())
			}
		}
	}
	return account
}
