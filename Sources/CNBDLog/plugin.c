#include "cnbdlog.h"
