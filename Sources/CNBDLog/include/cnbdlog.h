#ifndef CNBDLOG_H
#define CNBDLOG_H
#endif
