/* libnbd, the client of network block devices. */
#include <libnbd.h>
