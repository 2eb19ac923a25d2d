/*
 * One call is one connection: a request, then an answer. Both are a 32-bit length and that many
 * bytes, little-endian. A request is the function's name and its arguments, an answer a 32-bit HRESULT
 * and results. Each value begins with a letter:
 *
 *   U  64-bit number
 *   S  text: 32-bit count of UTF-16 units, the units
 *   B  bytes: 32-bit count, the bytes
 *   N  a null pointer
 */
#include "wire.h"
#include <stdlib.h>
#include <string.h>

#define MAX_MESSAGE (64u << 20)

static void append(struct buffer *b, const void *data, size_t n)
{
	if (b->used + n > b->size) {
		size_t size = (b->used + n) * 2 + 256;
		unsigned char *p = realloc(b->data, size);
		if (!p) {
			b->broken = 1;
			return;
		}
		b->data = p;
		b->size = size;
	}
	memcpy(b->data + b->used, data, n);
	b->used += n;
}

static int take(struct buffer *b, void *data, size_t n)
{
	if (b->broken || b->used - b->at < n) {
		b->broken = 1;
		memset(data, 0, n);
		return 0;
	}
	memcpy(data, b->data + b->at, n);
	b->at += n;
	return 1;
}

static void counted(struct message *m, char tag, const void *data, uint32_t count, size_t width)
{
	append(&m->buf, &tag, 1);
	append(&m->buf, &count, 4);
	append(&m->buf, data, (size_t)count * width);
}

void call_begin(struct message *m, const char *function)
{
	memset(m, 0, sizeof *m);
	m->socket = INVALID_SOCKET;
	counted(m, 'B', function, (uint32_t)strlen(function), 1);
}

void put_text(struct message *m, const WCHAR *s)
{
	if (s)
		counted(m, 'S', s, (uint32_t)wcslen(s), sizeof *s);
	else
		append(&m->buf, "N", 1);
}

void put_number(struct message *m, uint64_t n)
{
	append(&m->buf, "U", 1);
	append(&m->buf, &n, 8);
}

void put_bytes(struct message *m, const void *data, size_t n)
{
	if (data)
		counted(m, 'B', data, (uint32_t)n, 1);
	else
		append(&m->buf, "N", 1);
}

void put_info(struct message *m, const driver_info *info)
{
	put_number(m, info->flavour);
	put_text(m, info->home);
}

void put_descriptors(struct message *m, const layer_descriptor *d, uint32_t n)
{
	put_number(m, n);
	for (uint32_t i = 0; i < n; i++) {
		put_bytes(m, &d[i].id, sizeof d[i].id);
		put_number(m, d[i].flags);
		put_text(m, d[i].path);
	}
}

static BOOL CALLBACK startup(INIT_ONCE *once, void *param, void **context)
{
	WSADATA data;
	(void)once, (void)param, (void)context;
	return WSAStartup(MAKEWORD(2, 2), &data) == 0;
}

/* dial connects to the port of this machine that STRATA_STANDIN names. */
SOCKET dial(void)
{
	static INIT_ONCE once = INIT_ONCE_STATIC_INIT;
	char port[16];
	struct sockaddr_in to = { .sin_family = AF_INET };
	SOCKET s;

	if (!InitOnceExecuteOnce(&once, startup, NULL, NULL) ||
	    !GetEnvironmentVariableA("STRATA_STANDIN", port, sizeof port))
		return INVALID_SOCKET;
	s = socket(AF_INET, SOCK_STREAM, 0);
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	to.sin_port = htons((unsigned short)atoi(port));
	if (s != INVALID_SOCKET && connect(s, (struct sockaddr *)&to, sizeof to) != 0) {
		closesocket(s);
		s = INVALID_SOCKET;
	}
	return s;
}

int send_all(SOCKET s, const void *data, size_t n)
{
	const char *p = data;
	while (n > 0) {
		int k = send(s, p, n > (1 << 20) ? 1 << 20 : (int)n, 0);
		if (k <= 0)
			return 0;
		p += k;
		n -= (size_t)k;
	}
	return 1;
}

static int recv_all(SOCKET s, void *data, size_t n)
{
	char *p = data;
	while (n > 0) {
		int k = recv(s, p, n > (1 << 20) ? 1 << 20 : (int)n, 0);
		if (k <= 0)
			return 0;
		p += k;
		n -= (size_t)k;
	}
	return 1;
}

int receive(SOCKET s, struct buffer *b)
{
	uint32_t n;
	free(b->data);
	memset(b, 0, sizeof *b);
	if (!recv_all(s, &n, 4) || n > MAX_MESSAGE || !(b->data = malloc(n + 1)))
		return 0;
	b->size = b->used = n;
	return recv_all(s, b->data, n);
}

void call_send(struct message *m)
{
	uint32_t n = (uint32_t)m->buf.used;
	m->hr = UNREACHABLE;
	m->socket = m->buf.broken ? INVALID_SOCKET : dial();
	if (m->socket != INVALID_SOCKET && send_all(m->socket, &n, 4) && send_all(m->socket, m->buf.data, n) &&
	    receive(m->socket, &m->buf))
		take(&m->buf, &m->hr, 4);
	else
		m->buf.broken = 1;
}

uint64_t get_number(struct message *m)
{
	char tag = 0;
	uint64_t n = 0;
	if (take(&m->buf, &tag, 1) && tag == 'U')
		take(&m->buf, &n, 8);
	return n;
}

void get_bytes(struct message *m, void *data, size_t n)
{
	char tag = 0;
	uint32_t count = 0;
	if (take(&m->buf, &tag, 1) && tag == 'B' && take(&m->buf, &count, 4) && count == n)
		take(&m->buf, data, n);
}

WCHAR *get_text(struct message *m)
{
	char tag = 0;
	uint32_t count = 0;
	WCHAR *s;
	if (!take(&m->buf, &tag, 1) || tag != 'S' || !take(&m->buf, &count, 4) ||
	    !(s = CoTaskMemAlloc(((size_t)count + 1) * sizeof *s)))
		return NULL;
	take(&m->buf, s, (size_t)count * sizeof *s);
	s[count] = 0;
	return s;
}

HRESULT call_keep(struct message *m, SOCKET *s)
{
	free(m->buf.data);
	m->buf.data = NULL;
	*s = m->socket;
	return m->hr;
}

HRESULT call_end(struct message *m)
{
	SOCKET s;
	HRESULT hr = call_keep(m, &s);
	if (s != INVALID_SOCKET)
		closesocket(s);
	return hr;
}
