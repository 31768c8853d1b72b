#include "clivememory.h"
