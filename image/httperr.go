package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
)

// ErrDenied: the registry requires (other) credentials.
var ErrDenied = errors.New("the registry denies access")

// statusError is an HTTP error response.
type statusError struct {
	code int
	text string // the registry's explanation
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("answer %d %s", e.code, http.StatusText(e.code))
	if e.text != "" {
		s += ": " + e.text
	}
	return s
}

const maxErrorBody = 64 << 10

// checkStatus returns an error if the status of a response is none of want. It does not close the body.
func checkStatus(resp *http.Response, want ...int) error {
	for _, code := range want {
		if resp.StatusCode == code {
			return nil
		}
	}
	b, err := readLimited(resp.Body, maxErrorBody)
	e := &statusError{code: resp.StatusCode}
	if err == nil { // ignore an error here: the status matters more
		e.text = errorText(resp.Header.Get("Content-Type"), b)
	}
	return e
}

// errorText returns the explanation in an error response: "CODE: message" of the registry's format, or a short text.
func errorText(contentType string, b []byte) string {
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(b, &doc) == nil && len(doc.Errors) > 0 {
		var parts []string
		for _, e := range doc.Errors[:min(len(doc.Errors), 3)] {
			parts = append(parts, strings.Trim(e.Code+": "+e.Message, ": "))
		}
		return oneLine(strings.Join(parts, "; "))
	}
	if strings.Contains(contentType, "html") || strings.HasPrefix(strings.TrimSpace(string(b)), "<") {
		return "" // a page for a browser
	}
	return oneLine(string(b))
}

// explain wraps an error with the registry and the step, and puts the cause and its remedy in front.
func explain(registry, step string, err error) error {
	if ue, ok := err.(*url.Error); ok {
		err = ue.Err // the URL adds nothing to registry and step
	}
	if _, ok := errors.AsType[*stepError](err); ok {
		return err // a nested step is more specific
	}
	return &stepError{registry: registry, step: step, cause: cause(registry, err), err: err}
}

// stepError is the failure of one step: the first request, a token, a manifest, a blob.
type stepError struct {
	registry, step string
	cause          error // nil: err is enough
	err            error
}

func (e *stepError) Error() string {
	where := fmt.Sprintf("registry %s, %s", e.registry, e.step)
	if e.cause == nil {
		return fmt.Sprintf("%v: %s", e.err, where)
	}
	return fmt.Sprintf("%v: %s: %v", e.cause, where, e.err)
}

func (e *stepError) Unwrap() []error {
	if e.cause == nil {
		return []error{e.err}
	}
	return []error{e.cause, e.err}
}

// cause returns a short description of what is wrong and its remedy, or nil if err is enough.
func cause(registry string, err error) error {
	if se, ok := errors.AsType[*statusError](err); ok {
		switch se.code {
		case http.StatusNotFound:
			return ErrNotFound
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("%w (is the name right? if the repository is private: docker login %s)", ErrDenied, registry)
		case http.StatusTooManyRequests:
			return errors.New("too many requests; wait, or log in for a higher limit")
		}
		return nil
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, wsaConnectionRefused):
		return errors.New("connection refused: nothing listens there")
	case errors.Is(err, errStalled):
		return nil
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"),
		strings.Contains(err.Error(), "first record does not look like a TLS handshake"):
		return errors.New("no TLS there (to allow plain HTTP: --plain-http)")
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return fmt.Errorf("there is no host %s", oneLine(dns.Name))
	}
	return nil
}

// readLimited reads at most limit bytes, and fails if there are more.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
	}
	return b, err
}

// wsaConnectionRefused is the equivalent of ECONNREFUSED on Windows.
const wsaConnectionRefused = syscall.Errno(10061)
