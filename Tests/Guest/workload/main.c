// The guest's workload: takes commands from the second serial port, a line each, and answers each with a line of JSON.
//
//   ID fill MIB [SEED]                 memory that stays as it is; the answer comes when it is made
//   ID dirty PAGES_PER_SECOND MIB      writes into a region in order; 0 stops, -1 as fast as it can; MIB 0 keeps the region
//   ID disks THREADS [PAUSE_US]        writers on every virtio disk (default pause 1000); 0 stops
//   ID mark N                          remembers N, which every answer tells from now on
//   ID status                          the counters
//   ID check                           looks at all memory and all records, then answers with "ok" and the counters
//
// ID is any number, repeated in the answer. A line that is no command is answered with "id": null. The console (first
// serial port) has a line "CORRUPT ..." for each of the first errors.

#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

enum { LINE_ROOM = 256 };

static int64_t mark;

// Two streams of one port: a single one can't turn from reading to writing without seeking.
static void open_port(const char *path, FILE **in, FILE **out)
{
    int descriptor = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct termios settings;
    if (descriptor < 0 || tcgetattr(descriptor, &settings) != 0)
        fail("%s can't be opened: %s", path, strerror(errno));
    cfmakeraw(&settings);
    cfsetspeed(&settings, B115200);
    settings.c_cflag |= CLOCAL;
    if (tcsetattr(descriptor, TCSANOW, &settings) != 0)
        fail("%s can't be set up: %s", path, strerror(errno));
    *in = fdopen(descriptor, "r");
    *out = fdopen(dup(descriptor), "w");
    if (!*in || !*out)
        fail("%s can't be opened as a stream", path);
}

static void print_counters(FILE *out)
{
    fprintf(out, "\"ticks\":%lu,\"mark\":%ld,", ticks_now(), mark);
    print_fill(out);
    fprintf(out, ",");
    print_dirty(out);
    fprintf(out, ",");
    print_disks(out);
    fprintf(out, ",");
    print_errors(out);
}

static bool carry_out(const char *verb, const char *arguments)
{
    int64_t first = 0, second = 0;
    int count = sscanf(arguments, "%" SCNd64 " %" SCNd64, &first, &second);
    if (strcmp(verb, "fill") == 0 && count >= 1 && first >= 0) {
        fill(first, count > 1 ? second : 1);
    } else if (strcmp(verb, "dirty") == 0 && count == 2 && second >= 0) {
        dirty(first, second);
    } else if (strcmp(verb, "disks") == 0 && count >= 1 && first >= 0) {
        write_disks(first, count > 1 ? second : 1000);
    } else if (strcmp(verb, "mark") == 0 && count == 1) {
        mark = first;
    } else if (strcmp(verb, "check") == 0) {
        check_fill();
        check_dirty();
        check_disks();
    } else if (strcmp(verb, "status") != 0) {
        return false;
    }
    return true;
}

static void answer(char *line, FILE *port)
{
    int64_t id;
    char verb[16];
    int used = 0;
    if (sscanf(line, "%" SCNd64 " %15s%n", &id, verb, &used) != 2 || !carry_out(verb, line + used)) {
        fprintf(port, "{\"id\":null,\"refused\":true}\n");
    } else {
        // Built in full before it is sent: the port is slow, and the counters are of one moment.
        char *text = NULL;
        size_t length = 0;
        FILE *out = open_memstream(&text, &length);
        fprintf(out, "{\"id\":%ld,\"ok\":%s,", id, has_errors() ? "false" : "true");
        print_counters(out);
        fprintf(out, "}\n");
        fclose(out);
        fwrite(text, 1, length, port);
        free(text);
    }
    fflush(port);
}

int main(int count, char **arguments)
{
    if (count != 2)
        fail("usage: workload PORT");
    make_words();
    start_ticks();
    FILE *in, *out;
    open_port(arguments[1], &in, &out);
    char line[LINE_ROOM];
    while (fgets(line, sizeof line, in)) {
        if (line[strspn(line, " \r\n")] != 0)
            answer(line, out);
    }
    fail("%s has ended", arguments[1]);
}
