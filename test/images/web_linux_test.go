package images

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/test/nettest"
)

// nginxConf is as the image of nginx has it: the logs are what the container writes.
const nginxConf = `daemon off;
worker_processes 2;
error_log /dev/stderr notice;
pid /run/nginx.pid;
events {}
http {
	access_log /dev/stdout;
	include /etc/nginx/mime.types;
	server { listen 80; root /srv/www; }
}
`

// page fetches a page; "" when there is none yet.
func page(address string) string {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + address)
	if err != nil {
		return ""
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		return ""
	}
	return string(b)
}

// TestWebServer: nginx of Debian, with its configuration and pages from the host, is reached from there, writes its
// logs, ends when it is asked to, and is reached again after a start.
func TestWebServer(t *testing.T) {
	both(t, func(t *testing.T, b box, flags []string) {
		dir := t.TempDir()
		for name, text := range map[string]string{"nginx.conf": nginxConf, "www/index.html": "hello\n",
			"www/big": strings.Repeat("0123456789abcdef", 1<<16)} {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(dir, 0o755); err != nil { // the server is another user
			t.Fatal(err)
		}
		address := fmt.Sprintf("127.0.0.1:%d", nettest.UnusedPort(t))
		b.start(flags, "--name", "web", "-p", address+":80", "--stop-signal", "QUIT", "-m", "128m",
			"-v", filepath.Join(dir, "nginx.conf")+":/etc/nginx/nginx.conf:ro", "-v", filepath.Join(dir, "www")+":/srv/www:ro",
			debian, "nginx")
		for round := range 2 {
			b.eventually("the server answers", func() bool { return page(address) == "hello\n" })
			if got := page(address + "/big"); len(got) != 1<<20 {
				t.Errorf("a megabyte arrives as %d bytes", len(got))
			}
			b.eventually("the log has the request", func() bool {
				return strings.Contains(b.run("logs", "web"), `"GET /big HTTP/1.1" 200 1048576`)
			})
			if round > 0 {
				break
			}
			b.run("exec", "web", "nginx", "-s", "reload")
			b.eventually("the server answers after a reload", func() bool { return page(address) == "hello\n" })
			b.run("stop", "web")
			if r := b.inspect("web"); r.State != "exited" || r.ExitCode != 0 || r.Error != "" {
				t.Errorf("after stop: %+v", r)
			}
			if got := page(address); got != "" {
				t.Errorf("a server that was stopped answers %q", got)
			}
			b.run("start", "web")
		}
		b.run("rm", "-f", "web")
	})
}
