/* The one function of bcryptprimitives.dll that Go programs need; Wine 8 lacks the library. */
#include <windows.h>
#define RtlGenRandom SystemFunction036
BOOLEAN NTAPI RtlGenRandom(void *, ULONG);

__declspec(dllexport) BOOL WINAPI ProcessPrng(BYTE *data, SIZE_T n)
{
	while (n > 0) {
		ULONG part = n > 65536 ? 65536 : (ULONG)n;
		if (!RtlGenRandom(data, part))
			return FALSE;
		data += part;
		n -= part;
	}
	return TRUE;
}
