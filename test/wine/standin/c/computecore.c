/* Stand-in for computecore.dll: access of VMs to files. */
#include "wire.h"

API HcsRevokeVmAccess(const WCHAR *vm, const WCHAR *file)
{
	struct message m;
	call_begin(&m, "HcsRevokeVmAccess");
	put_text(&m, vm);
	put_text(&m, file);
	call_send(&m);
	return call_end(&m);
}
