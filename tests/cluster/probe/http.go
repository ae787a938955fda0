package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
)

func serveHTTP(name string, port int) error {
	var unready int32
	mux := http.NewServeMux()
	mux.HandleFunc("/who", func(writer http.ResponseWriter, request *http.Request) {
		client, _, _ := net.SplitHostPort(request.RemoteAddr)
		fmt.Fprintf(writer, "%s %s\n", name, client)
	})
	mux.HandleFunc("/healthz", func(writer http.ResponseWriter, _ *http.Request) { fmt.Fprintln(writer, "ok") })
	mux.HandleFunc("/readyz", func(writer http.ResponseWriter, _ *http.Request) {
		if atomic.LoadInt32(&unready) != 0 {
			http.Error(writer, "told not to be ready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(writer, "ok")
	})
	mux.HandleFunc("/unready", func(http.ResponseWriter, *http.Request) { atomic.StoreInt32(&unready, 1) })
	mux.HandleFunc("/ready", func(http.ResponseWriter, *http.Request) { atomic.StoreInt32(&unready, 0) })
	mux.HandleFunc("/check", handleCheck)
	mux.HandleFunc("/stream", handleStream)
	// As name:port, and not with an address, both families are served.
	return http.ListenAndServe(fmt.Sprintf(":%d", port), mux)
}

// serveWebhook denies objects with the label `forbidden`, as a validating webhook.
func serveWebhook(cert, key string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/validate", func(writer http.ResponseWriter, request *http.Request) {
		var review struct {
			Request struct {
				UID    string `json:"uid"`
				Object struct {
					Metadata struct {
						Labels map[string]string `json:"labels"`
					} `json:"metadata"`
				} `json:"object"`
			} `json:"request"`
		}
		if err := json.NewDecoder(request.Body).Decode(&review); err != nil {
			refuse(writer, err)
			return
		}
		_, forbidden := review.Request.Object.Metadata.Labels["forbidden"]
		reply(writer, map[string]interface{}{
			"apiVersion": "admission.k8s.io/v1",
			"kind":       "AdmissionReview",
			"response": map[string]interface{}{
				"uid":     review.Request.UID,
				"allowed": !forbidden,
				"status":  map[string]interface{}{"message": "the probe's webhook forbids it"},
			},
		})
	})
	return http.ListenAndServeTLS(":8443", cert, key, mux)
}
