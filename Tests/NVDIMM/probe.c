// Self-test of the emulated guest: does libpmem take a file on its DAX file system for persistent memory?

#include <libpmem.h>
#include <stdio.h>
#include <string.h>

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: probe FILE\n");
        return 2;
    }
    size_t mapped_bytes;
    int is_pmem;
    char *bytes = pmem_map_file(arguments[1], 2 << 20, PMEM_FILE_CREATE, 0600, &mapped_bytes, &is_pmem);
    if (bytes == NULL) {
        fprintf(stderr, "probe: cannot map %s: %s\n", arguments[1], pmem_errormsg());
        return 1;
    }
    const char text[] = "written through libpmem";
    pmem_memcpy_persist(bytes, text, sizeof text);
    printf("is_pmem %d\n", is_pmem);
    return pmem_unmap(bytes, mapped_bytes) == 0 && is_pmem ? 0 : 1;
}
