package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	// How long one question may take; the machine is slow and shared.
	askLimit = 10 * time.Second
	// How many checks run at once.
	atOnce = 24
	// What must never be seen in clear on the way between nodes.
	marker = "warren-cluster-marker-5d0c41"
)

// A Check is one question, asked several times.
type Check struct {
	ID string `json:"id"`
	// tcp and udp ask who answers, tls whose certificate it is, dns which addresses a name has.
	Kind string `json:"kind"`
	// host:port; a name for dns.
	To    string `json:"to"`
	Times int    `json:"times"`
	// Whether the packets may not be seen in clear.
	Secret bool `json:"secret"`
}

// An Answer is who answered, and as whom it saw the asker.
type Answer struct {
	Server string `json:"server"`
	Client string `json:"client"`
}

// A Result is what came of a check.
type Result struct {
	ID        string   `json:"id"`
	Answers   []Answer `json:"answers"`
	Addresses []string `json:"addresses"`
	// What went wrong, once for each time that it did.
	Errors []string `json:"errors"`
	Millis int64    `json:"millis"`
}

func runChecks(checks []Check) []Result {
	results := make([]Result, len(checks))
	slots := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i := range checks {
		all.Add(1)
		slots <- struct{}{}
		go func(i int) {
			defer all.Done()
			results[i] = checks[i].run()
			<-slots
		}(i)
	}
	all.Wait()
	return results
}

func (c Check) run() Result {
	result := Result{ID: c.ID, Answers: []Answer{}, Addresses: []string{}, Errors: []string{}}
	started := time.Now()
	times := c.Times
	if times < 1 {
		times = 1
	}
	for ; times > 0; times-- {
		ctx, cancel := context.WithTimeout(context.Background(), askLimit)
		var err error
		var answer Answer
		switch c.Kind {
		case "tcp":
			answer, err = c.askTCP(ctx)
		case "udp":
			answer, err = c.askUDP(ctx)
		case "tls":
			answer, err = c.askTLS(ctx)
		case "dns":
			result.Addresses, err = net.DefaultResolver.LookupHost(ctx, c.To)
		default:
			err = fmt.Errorf("unknown kind %q: tcp, udp, tls or dns", c.Kind)
		}
		cancel()
		if err != nil {
			result.Errors = append(result.Errors, err.Error())
		} else if c.Kind != "dns" {
			result.Answers = append(result.Answers, answer)
		}
	}
	result.Millis = time.Since(started).Milliseconds()
	return result
}

// Each question by a connection of its own, for a Service chooses by connection.
var client = http.Client{
	Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true},
}

func (c Check) askTCP(ctx context.Context) (Answer, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.To+"/who", nil)
	if err != nil {
		return Answer{}, err
	}
	if c.Secret {
		request.Header.Set("X-Secret", marker)
	}
	response, err := client.Do(request)
	if err != nil {
		return Answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	if err != nil {
		return Answer{}, err
	}
	if response.StatusCode != http.StatusOK {
		return Answer{}, fmt.Errorf("%s: %s", response.Status, body)
	}
	return parseAnswer(string(body))
}

func (c Check) askUDP(ctx context.Context) (Answer, error) {
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "udp", c.To)
	if err != nil {
		return Answer{}, err
	}
	defer connection.Close()
	if deadline, set := ctx.Deadline(); set {
		if err := connection.SetDeadline(deadline); err != nil {
			return Answer{}, err
		}
	}
	question := append([]byte{}, who...)
	if c.Secret {
		question = append(question, marker...)
	}
	if _, err := connection.Write(question); err != nil {
		return Answer{}, err
	}
	answer := make([]byte, 4096)
	n, err := connection.Read(answer)
	if err != nil {
		return Answer{}, err
	}
	return parseAnswer(string(answer[:n]))
}

// askTLS believes any certificate: it asks for a way, and sends no secret.
func (c Check) askTLS(ctx context.Context) (Answer, error) {
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	connection, err := dialer.DialContext(ctx, "tcp", c.To)
	if err != nil {
		return Answer{}, err
	}
	defer connection.Close()
	certificates := connection.(*tls.Conn).ConnectionState().PeerCertificates
	return Answer{Server: certificates[0].Subject.CommonName}, nil
}

func parseAnswer(text string) (Answer, error) {
	fields := strings.Fields(text)
	if len(fields) != 2 {
		return Answer{}, fmt.Errorf("not an answer of a probe: %q", text)
	}
	return Answer{fields[0], fields[1]}, nil
}

func handleCheck(writer http.ResponseWriter, request *http.Request) {
	var checks []Check
	if err := json.NewDecoder(request.Body).Decode(&checks); err != nil {
		refuse(writer, err)
		return
	}
	reply(writer, runChecks(checks))
}

func refuse(writer http.ResponseWriter, err error) {
	http.Error(writer, err.Error(), http.StatusBadRequest)
}

func reply(writer http.ResponseWriter, value interface{}) {
	writer.Header().Set("Content-Type", "application/json")
	// The asker that went away does not wait for it.
	_ = json.NewEncoder(writer).Encode(value)
}
