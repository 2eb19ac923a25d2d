/* Calls to the stand-in program: see wire.c for the messages. */
#ifndef WIRE_H
#define WIRE_H

#define WIN32_LEAN_AND_MEAN

#include <winsock2.h>
#include <windows.h>
#include <objbase.h>
#include <stddef.h>
#include <stdint.h>

#define API __declspec(dllexport) HRESULT WINAPI

/* What a call answers when the stand-in cannot be reached: ERROR_SERVICE_NOT_ACTIVE. */
#define UNREACHABLE ((HRESULT)0x80070426)

struct buffer {
	unsigned char *data;
	size_t size, used, at;
	int broken; /* out of memory, or read beyond the end */
};

struct message {
	SOCKET socket;
	struct buffer buf;
	HRESULT hr;
};

typedef struct {
	uint32_t flavour;
	const WCHAR *home;
} driver_info;

typedef struct {
	GUID id;
	uint32_t flags;
	const WCHAR *path;
} layer_descriptor;

/* Building a call. */
void call_begin(struct message *m, const char *function);
void put_text(struct message *m, const WCHAR *s);
void put_number(struct message *m, uint64_t n);
void put_bytes(struct message *m, const void *data, size_t n);
void put_info(struct message *m, const driver_info *info);
void put_descriptors(struct message *m, const layer_descriptor *d, uint32_t n);

/* Making it. After call_send the results are read in order; call_end gives the HRESULT. */
void call_send(struct message *m);
uint64_t get_number(struct message *m);
void get_bytes(struct message *m, void *data, size_t n);
WCHAR *get_text(struct message *m); /* CoTaskMemAlloc'd, NULL for none */
HRESULT call_end(struct message *m);

/* call_keep ends a call but keeps its connection, which the caller closes. */
HRESULT call_keep(struct message *m, SOCKET *s);

/* receive waits for one more message on a kept connection: 0 when it was closed. */
int receive(SOCKET s, struct buffer *b);
int send_all(SOCKET s, const void *data, size_t n);
SOCKET dial(void);

#endif
