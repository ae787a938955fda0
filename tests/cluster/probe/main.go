// Probe is the program in the test cluster's pods: it answers who called, asks others, and keeps streams of
// datagrams going. It needs nothing but the kernel, so that an image holds it alone.
//
//	probe             sleeps: the sandbox of each pod
//	probe serve       answers on HTTP and UDP, and takes orders (POST /check, /stream)
//	probe check       reads checks on standard input, writes their results
//	probe call M URL  sends standard input to a serving probe by the method M, writes the answer
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	command := "pause"
	if len(os.Args) > 1 {
		command = os.Args[1]
	}
	var err error
	switch command {
	case "pause":
		pause()
	case "serve":
		err = serveCommand(os.Args[2:])
	case "check":
		err = checkCommand()
	case "call":
		err = callCommand(os.Args[2:])
	default:
		err = fmt.Errorf("unknown command %q: pause, serve, check or call", command)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// pause waits to be told to end. As the first process of a sandbox it would collect orphans; with a
// process namespace for each container there are none.
func pause() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM)
	<-ended
}

func serveCommand(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	port := flags.Int("port", 8080, "port of HTTP and of UDP, all addresses, both families")
	cert := flags.String("tls-cert", "", "certificate of the webhook on port 8443; none without it")
	key := flags.String("tls-key", "", "its key")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	name := os.Getenv("PROBE_NAME")
	if name == "" {
		name, _ = os.Hostname()
	}
	failed := make(chan error)
	for _, network := range []string{"udp4", "udp6"} {
		socket, err := listenUDP(network, *port)
		if err != nil {
			return err
		}
		go func() { failed <- socket.answer(name) }()
	}
	go func() { failed <- serveHTTP(name, *port) }()
	if *cert != "" {
		go func() { failed <- serveWebhook(*cert, *key) }()
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM)
	select {
	case err := <-failed:
		return err
	case <-ended:
		return nil
	}
}

func checkCommand() error {
	var checks []Check
	if err := json.NewDecoder(os.Stdin).Decode(&checks); err != nil {
		return fmt.Errorf("read the checks: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(runChecks(checks))
}

func callCommand(arguments []string) error {
	if len(arguments) != 2 {
		return fmt.Errorf("call: method and URL are wanted, not %q", arguments)
	}
	request, err := http.NewRequest(arguments[0], arguments[1], os.Stdin)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", arguments[0], arguments[1], response.Status)
	}
	return nil
}
