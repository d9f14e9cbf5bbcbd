// Stand-in for katib-db-manager, and for the service that a trial's early stopping is told to: it speaks Katib's own gRPC API, and
// instead of a database it has a file, to which it adds a line of JSON for every request: {"<method>": <request>}.
//
//	stand-in ADDRESS FILE
//
// It answers as long as its standard input stays open, so that it never outlives who started it, and prints a line when it listens.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync"

	katib "github.com/kubeflow/katib/pkg/apis/manager/v1beta1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

type standIn struct {
	katib.UnimplementedDBManagerServer
	katib.UnimplementedEarlyStoppingServer
	mutex sync.Mutex
	file  *os.File
}

func (s *standIn) ReportObservationLog(
	_ context.Context, request *katib.ReportObservationLogRequest,
) (*katib.ReportObservationLogReply, error) {
	return &katib.ReportObservationLogReply{}, s.record("ReportObservationLog", request)
}

func (s *standIn) SetTrialStatus(
	_ context.Context, request *katib.SetTrialStatusRequest,
) (*katib.SetTrialStatusReply, error) {
	return &katib.SetTrialStatusReply{}, s.record("SetTrialStatus", request)
}

func (s *standIn) record(method string, request proto.Message) error {
	text, err := protojson.Marshal(request)
	if err != nil {
		return err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	_, err = fmt.Fprintf(s.file, "{%q: %s}\n", method, text)
	return err
}

func run(address, path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	service := &standIn{file: file}
	katib.RegisterDBManagerServer(server, service)
	katib.RegisterEarlyStoppingServer(server, service)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		server.Stop()
	}()
	fmt.Println("listening on", listener.Addr())
	return server.Serve(listener)
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: stand-in ADDRESS FILE")
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}
