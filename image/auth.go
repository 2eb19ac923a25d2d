package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// session adds credentials to requests and answers the registry's challenges, of the first request and of later ones,
// for example when a token has expired.
//
// Credentials are sent only to the registry itself or to the token server that it names, never along with a redirect.
// A server that a request is redirected to may demand a token of its own, which is requested without credentials.
type session struct {
	home  origin // the registry
	scope string
	creds Credentials
	inner http.RoundTripper

	mu     sync.Mutex
	logins map[origin]*login
}

// origin is the scheme and host of a request.
type origin struct{ scheme, host string }

func originOf(u *url.URL) origin { return origin{u.Scheme, u.Host} }

// login is the authentication state of one origin. The lock is held while a token is requested, so that concurrent
// requests share one token.
type login struct {
	mu     sync.Mutex
	header string // Authorization; empty: none
}

func (s *session) login(o origin) *login {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.logins[o]
	if l == nil {
		l = &login{}
		s.logins[o] = l
	}
	return l
}

func (l *login) get() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.header
}

// maxLogins is how often one request is repeated with another login: a shared token may expire more than once in the
// meantime.
const maxLogins = 2

func (s *session) RoundTrip(req *http.Request) (*http.Response, error) {
	at := originOf(req.URL)
	l := s.login(at)
	for n := 0; ; n++ {
		header := l.get()
		r := req
		if header != "" {
			r = req.Clone(req.Context())
			r.Header.Set("Authorization", header)
		}
		resp, err := s.inner.RoundTrip(r)
		if err != nil || resp.StatusCode != http.StatusUnauthorized || n == maxLogins {
			return resp, err
		}
		again, err := s.answer(req.Context(), at, header, challenges(resp.Header))
		if err != nil {
			return nil, errors.Join(err, resp.Body.Close())
		}
		if !again {
			return resp, nil
		}
		if err := resp.Body.Close(); err != nil {
			return nil, err
		}
	}
}

// answer authenticates as the challenges of an origin demand. used is the header of the rejected request; again
// reports whether there is another one to try.
func (s *session) answer(ctx context.Context, at origin, used string, list []challenge) (again bool, err error) {
	l := s.login(at)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.header != used {
		return true, nil // another request has logged in in the meantime
	}
	c, ok := choose(list)
	if !ok {
		return false, nil
	}
	var creds Credentials
	if at == s.home {
		creds = s.creds
	}
	header := ""
	switch {
	case c.scheme == "basic":
		header = creds.basic()
	case creds.RegistryToken != "":
		header = "Bearer " + creds.RegistryToken
	default:
		token, err := s.token(ctx, at, c, creds)
		if err != nil {
			return false, err
		}
		header = "Bearer " + token
	}
	again = header != "" && header != used
	l.header = header
	return again, nil
}

func (c Credentials) basic() string {
	if c.Username == "" && c.Password == "" {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
}

// token requests a token as specified in https://distribution.github.io/distribution/spec/auth/token.
func (s *session) token(ctx context.Context, at origin, c challenge, creds Credentials) (string, error) {
	const step = "token"
	realm, err := url.Parse(c.params["realm"])
	if err == nil {
		err = checkRealm(realm, at)
	}
	if err != nil {
		return "", explain(at.host, step, err)
	}
	scopes := []string{}
	if at == s.home {
		scopes = append(scopes, s.scope)
	}
	if sc := c.params["scope"]; sc != "" && !slices.Contains(scopes, sc) {
		scopes = append(scopes, sc)
	}
	if creds.IdentityToken != "" {
		token, err := s.refresh(ctx, at, realm, c.params["service"], scopes, creds.IdentityToken)
		var se *statusError
		if !errors.As(err, &se) || se.code != http.StatusNotFound && se.code != http.StatusMethodNotAllowed {
			return token, err
		}
		// Not every token server supports OAuth 2.
	}
	q := realm.Query()
	q["scope"] = scopes
	if service := c.params["service"]; service != "" {
		q.Set("service", service)
	}
	u := *realm
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", explain(at.host, step, err)
	}
	if header := creds.basic(); header != "" {
		req.Header.Set("Authorization", header)
	}
	return s.fetchToken(req, at)
}

// refresh requests a token with a refresh token.
func (s *session) refresh(ctx context.Context, at origin, realm *url.URL, service string, scopes []string,
	token string) (string, error) {
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}, "client_id": {userAgent},
		"service": {service},
		"scope":   {strings.Join(scopes, " ")}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return "", explain(at.host, "token", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return s.fetchToken(req, at)
}

func (s *session) fetchToken(req *http.Request, at origin) (string, error) {
	first := originOf(req.URL)
	client := http.Client{Transport: s.inner, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fmt.Errorf("%w: more than %d redirections", ErrInvalid, maxRedirects)
		}
		if originOf(next.URL) != first {
			next.Header.Del("Authorization")
		}
		return checkRealm(next.URL, at)
	}}
	req.Header.Set("User-Agent", userAgent)
	resp, err := client.Do(req)
	if err != nil {
		return "", explain(at.host, "token", err)
	}
	if err := checkStatus(resp, http.StatusOK); err != nil {
		return "", explain(at.host, "token", errors.Join(err, resp.Body.Close()))
	}
	b, err := readLimited(resp.Body, maxManifest)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return "", explain(at.host, "token", err)
	}
	var got struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	// Do not show the response: it may contain a token.
	if err := json.Unmarshal(b, &got); err != nil || got.Token == "" && got.AccessToken == "" {
		return "", explain(at.host, "token", fmt.Errorf("%w: the answer of %s holds no token", ErrInvalid, req.URL.Host))
	}
	if got.Token == "" {
		got.Token = got.AccessToken
	}
	return got.Token, nil
}

// checkRealm refuses token servers that a registry must not send us to: over plain HTTP if the registry uses TLS, and
// addresses of this machine or its network if the registry is not there, too.
func checkRealm(u *url.URL, at origin) error {
	if u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("%w: the registry wants a token, and %q is no address to fetch it from",
			ErrInvalid, oneLine(u.String()))
	}
	if u.Scheme == "http" && at.scheme != "http" {
		return fmt.Errorf("%w: the registry wants a token to be fetched over plain HTTP (%s)", ErrInvalid, oneLine(u.Host))
	}
	if u.Host == at.host || isNear(&url.URL{Host: at.host}) || !isNear(u) {
		return nil
	}
	return fmt.Errorf("%w: the registry wants a token to be fetched from %s, which is near this machine and "+
		"not near the registry",
		ErrInvalid, oneLine(u.Host))
}

// isNear reports whether the host is an address of this machine or of its local network.
func isNear(u *url.URL) bool {
	if isLoopback(u.Host) {
		return true
	}
	a, err := netip.ParseAddr(u.Hostname())
	a = a.Unmap()
	return err == nil && (a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsUnspecified())
}

// isLoopback reports whether HOST[:PORT] is a loopback address or name.
func isLoopback(host string) bool {
	u := &url.URL{Host: host}
	name := u.Hostname()
	a, err := netip.ParseAddr(name)
	return err == nil && a.Unmap().IsLoopback() || name == "localhost" || strings.HasSuffix(name, ".localhost")
}
