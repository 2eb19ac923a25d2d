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

// session adds to requests what the registry wants to see, and answers its challenges: that of the first
// request as well as one that comes later, when a token has expired or was not wanted before.
//
// The credentials go to the registry itself or to the token server that it names, and never along with a
// redirection. A server that a request is redirected to may ask for a token of its own; it is fetched without
// credentials.
type session struct {
	home  origin // the registry
	scope string
	creds Credentials
	inner http.RoundTripper

	mu     sync.Mutex
	logins map[origin]*login
}

// origin is where a request goes.
type origin struct{ scheme, host string }

func originOf(u *url.URL) origin { return origin{u.Scheme, u.Host} }

// login is what is known of one origin. Its lock is held while a token is fetched, so that one is fetched for
// all requests that wait for it.
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

// maxLogins is how often one request is sent again with another login: a token that other requests share may
// expire more than once meanwhile.
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

// answer logs in as an origin asks. used is what it was shown; again reports whether there is something else to
// show.
func (s *session) answer(ctx context.Context, at origin, used string, list []challenge) (again bool, err error) {
	l := s.login(at)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.header != used {
		return true, nil // another request has logged in meanwhile
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

// token fetches a token as https://distribution.github.io/distribution/spec/auth/token describes it.
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
		// Not every token server knows OAuth 2.
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

// refresh fetches a token for a refresh token.
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
	// What is wrong with the answer is not shown: it may hold a token all the same.
	if err := json.Unmarshal(b, &got); err != nil || got.Token == "" && got.AccessToken == "" {
		return "", explain(at.host, "token", fmt.Errorf("%w: the answer of %s holds no token", ErrInvalid, req.URL.Host))
	}
	if got.Token == "" {
		got.Token = got.AccessToken
	}
	return got.Token, nil
}

// checkRealm refuses token servers that a registry must not send us to: over plain HTTP where the registry itself
// is asked over TLS, and addresses of this machine or its network where the registry is not there too.
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

// isNear reports whether the host is an address of this machine or of its own network.
func isNear(u *url.URL) bool {
	if isLoopback(u.Host) {
		return true
	}
	a, err := netip.ParseAddr(u.Hostname())
	a = a.Unmap()
	return err == nil && (a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsUnspecified())
}

// isLoopback reports whether HOST[:PORT] is this machine.
func isLoopback(host string) bool {
	u := &url.URL{Host: host}
	name := u.Hostname()
	a, err := netip.ParseAddr(name)
	return err == nil && a.Unmap().IsLoopback() || name == "localhost" || strings.HasSuffix(name, ".localhost")
}
