#ifndef CLIVEMEMORY_H
#define CLIVEMEMORY_H
#endif
