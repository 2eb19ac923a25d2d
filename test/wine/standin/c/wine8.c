/*
 * What Wine 8 lacks of what Go programs call, apart from whole libraries. Every Go program loads
 * bcryptprimitives.dll as it starts; that is where this is linked to.
 *
 * Go deletes files by NtSetInformationFile with class FileDispositionInformationEx, and falls back to
 * the older class when the system does not know it. Wine 8 answers "not implemented", which Go takes
 * for a failure. So the export is led through a function that asks for the older class at once.
 */
#include <windows.h>
#include <winternl.h>
#include <stdint.h>
#include <string.h>

#define DISPOSITION 13
#define DISPOSITION_EX 64
#define DISPOSITION_EX_DELETE 1

typedef NTSTATUS(NTAPI *set_information)(HANDLE, IO_STATUS_BLOCK *, void *, ULONG, int);

static set_information original;

static NTSTATUS NTAPI replacement(HANDLE file, IO_STATUS_BLOCK *io, void *info, ULONG size, int class)
{
	BOOLEAN remove;
	if (class != DISPOSITION_EX || size < 4)
		return original(file, io, info, size, class);
	remove = (*(ULONG *)info & DISPOSITION_EX_DELETE) != 0;
	return original(file, io, &remove, sizeof remove, DISPOSITION);
}

/* near_page allocates a page after a module: the export table has 32-bit offsets. */
static unsigned char *near_page(unsigned char *base, size_t image)
{
	unsigned char *p = (unsigned char *)(((uintptr_t)base + image + 0xFFFF) & ~(uintptr_t)0xFFFF);
	for (int i = 0; i < 4096; i++, p += 0x10000) {
		void *got = VirtualAlloc(p, 4096, MEM_RESERVE | MEM_COMMIT, PAGE_EXECUTE_READWRITE);
		if (got)
			return got;
	}
	return NULL;
}

static void redirect(const char *name)
{
	unsigned char *base = (unsigned char *)GetModuleHandleW(L"ntdll.dll"), *thunk;
	IMAGE_NT_HEADERS *nt = (IMAGE_NT_HEADERS *)(base + ((IMAGE_DOS_HEADER *)base)->e_lfanew);
	IMAGE_EXPORT_DIRECTORY *dir =
		(void *)(base + nt->OptionalHeader.DataDirectory[IMAGE_DIRECTORY_ENTRY_EXPORT].VirtualAddress);
	DWORD *names = (DWORD *)(base + dir->AddressOfNames), *functions = (DWORD *)(base + dir->AddressOfFunctions), old;
	WORD *ordinals = (WORD *)(base + dir->AddressOfNameOrdinals);
	static const unsigned char jump[] = { 0x48, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xE0 }; /* mov rax, imm64; jmp rax */
	uintptr_t target = (uintptr_t)replacement;

	for (DWORD i = 0; i < dir->NumberOfNames; i++) {
		DWORD *entry = &functions[ordinals[i]];
		if (strcmp((char *)base + names[i], name) != 0)
			continue;
		if (!(thunk = near_page(base, nt->OptionalHeader.SizeOfImage)))
			return;
		memcpy(thunk, jump, sizeof jump);
		memcpy(thunk + 2, &target, sizeof target);
		original = (set_information)(base + *entry);
		if (VirtualProtect(entry, sizeof *entry, PAGE_READWRITE, &old)) {
			*entry = (DWORD)(thunk - base);
			VirtualProtect(entry, sizeof *entry, old, &old);
		}
		return;
	}
}

BOOL WINAPI DllMain(HINSTANCE self, DWORD reason, void *reserved)
{
	(void)self, (void)reserved;
	if (reason == DLL_PROCESS_ATTACH)
		redirect("NtSetInformationFile");
	return TRUE;
}
