// Stand-in for the program of istio-proxy's image, which no registry of programs has. As that one it is the parent of Envoy, which it
// starts with the configuration that the real one would have written, passes SIGTERM on, and has on port 15020 an endpoint
// /quitquitquit: POST from this pod alone (istio, pilot/cmd/pilot-agent/status/server.go: handleQuit). Nothing else of it is here.
package main

import (
	"errors"
	"log"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
)

func run() (int, error) {
	envoy := exec.Command("/usr/local/bin/envoy", "--config-path", "/etc/istio/proxy/envoy-rev.json",
		"--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")
	envoy.Stdout, envoy.Stderr = os.Stdout, os.Stderr
	// Whatever becomes of us, it does not stay alone. The kernel goes by the thread that has started it.
	runtime.LockOSThread()
	envoy.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	quit := make(chan os.Signal, 1)
	signal.Notify(quit, syscall.SIGTERM, syscall.SIGINT)
	if err := envoy.Start(); err != nil {
		return 1, err
	}
	http.HandleFunc("/quitquitquit", func(response http.ResponseWriter, request *http.Request) {
		if request.Method != http.MethodPost {
			http.Error(response, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		_, _ = response.Write([]byte("OK"))
		log.Print("asked to quit")
		quit <- syscall.SIGTERM
	})
	go func() {
		log.Fatal(http.ListenAndServe("127.0.0.1:15020", nil))
	}()
	go func() {
		for range quit {
			_ = envoy.Process.Signal(syscall.SIGTERM)
		}
	}()
	var ended *exec.ExitError
	if err := envoy.Wait(); errors.As(err, &ended) {
		return ended.ExitCode(), nil
	} else if err != nil {
		return 1, err
	}
	return 0, nil
}

func main() {
	code, err := run()
	if err != nil {
		log.Print(err)
	}
	os.Exit(code)
}
