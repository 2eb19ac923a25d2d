package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// ping is the registry's response to the first request.
type ping struct {
	scheme     string
	challenges []challenge
	err        error
}

// plainHTTPAfter is how long only TLS is tried if plain HTTP is allowed, too.
const plainHTTPAfter = 300 * time.Millisecond

// findScheme requests /v2/ from the registry: over TLS and, if plain HTTP is allowed, also over that once TLS has
// failed or takes long. The first response wins.
func findScheme(ctx context.Context, host string, inner http.RoundTripper, o Options) (ping, error) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
	}()
	results := make(chan ping, 2)
	start := func(scheme string, o Options) {
		running.Go(func() { results <- pingOnce(ctx, scheme, host, &retrier{inner: inner, o: o, registry: host}) })
	}
	if !o.PlainHTTP && !isLoopback(host) {
		start("https", o)
		p := <-results
		return p, p.err
	}
	// Do not retry TLS on its own: retries are those of plain HTTP.
	once := o
	once.Retries = -1
	start("https", once)
	timer := time.NewTimer(plainHTTPAfter)
	defer timer.Stop()
	var errs [2]error // of TLS and of plain HTTP
	plain := false
	for left := 1; left > 0; {
		select {
		case <-timer.C:
		case p := <-results:
			left--
			switch {
			case p.err == nil:
				return p, nil
			case p.scheme == "https":
				errs[0] = p.err
			default:
				errs[1] = p.err
			}
		}
		if !plain {
			plain = true
			left++
			start("http", o)
		}
	}
	return ping{}, worse(errs[0], errs[1])
}

// worse combines the errors over TLS and over plain HTTP. If the server responded to one of them, that error is
// returned.
func worse(tls, plain error) error {
	if _, ok := errors.AsType[*statusError](plain); ok {
		return plain
	}
	if _, ok := errors.AsType[*statusError](tls); ok {
		return tls
	}
	a, okA := errors.AsType[*stepError](tls)
	b, okB := errors.AsType[*stepError](plain)
	if okA && okB && a.cause != nil && b.cause != nil && a.cause.Error() == b.cause.Error() {
		return plain
	}
	return fmt.Errorf("%w (over plain HTTP; over TLS: %w)", plain, tls)
}

func pingOnce(ctx context.Context, scheme, host string, rt http.RoundTripper) ping {
	const step = "first request"
	fail := func(err error) ping { return ping{scheme: scheme, err: explain(host, step, err)} }
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+host+"/v2/", nil)
	if err != nil {
		return fail(err)
	}
	req.Header.Set("User-Agent", userAgent)
	client := http.Client{Transport: rt}
	resp, err := client.Do(req)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	// Not every registry implements this endpoint. Later requests bring their own challenges.
	err = checkStatus(resp, http.StatusOK, http.StatusUnauthorized, http.StatusNotFound, http.StatusMethodNotAllowed)
	if err != nil {
		return fail(err)
	}
	p := ping{scheme: scheme}
	if at := originOf(resp.Request.URL); at == (origin{"https", host}) {
		p.scheme = "https" // plain HTTP may have been redirected
	}
	if originOf(resp.Request.URL) == (origin{p.scheme, host}) && resp.StatusCode == http.StatusUnauthorized {
		p.challenges = challenges(resp.Header)
	}
	return p
}
