/* libfuse, the interface of file systems in user space, in the form of version 3.12. */
#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>
