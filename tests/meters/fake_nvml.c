/* Stands in for the NVIDIA driver library: answers from the trace that FAKE_NVML_TRACE names, at the moment that the
   file FAKE_NVML_NOW holds. Columns: time_s, energy_mj, power_mw, instant_mw, average_mw, reasons, mig; "-" is an
   error. FAKE_NVML_BOARDS boards (1 by default) all answer alike, but board n's energy is n+1 times the first one's.
   Built with -DOLD it lacks what drivers before 2023 lack. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, UNKNOWN = 999 };
enum { TIME, ENERGY, POWER, INSTANT, AVERAGE, REASONS, MIG, COLUMNS };
enum { FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186 };

typedef struct { int board; } *Device;
typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency_us;
    uint32_t type, code;
    union { double d; uint32_t ui; uint64_t ull; } value;
} FieldValue;

static int boards[8] = {0, 1, 2, 3, 4, 5, 6, 7};
static int initialised;

static int count(void) {
    const char *given = getenv("FAKE_NVML_BOARDS");
    return given ? atoi(given) : 1;
}

static int read_now(double *now) {
    const char *path = getenv("FAKE_NVML_NOW");
    FILE *file = path ? fopen(path, "r") : NULL;
    int read = file ? fscanf(file, "%lf", now) : 0;
    if (file) fclose(file);
    return read == 1;
}

static int look(int column, uint64_t *value) {
    char line[512], found[64] = "-";
    const char *path = getenv("FAKE_NVML_TRACE");
    double now = 0;
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!initialised || !file || !read_now(&now)) return UNKNOWN;
    while (fgets(line, sizeof line, file)) {
        char *rest = line, *cell;
        if (line[0] == '#' || strncmp(line, "time_s", 6) == 0) continue;
        if (atof(line) > now) break;
        for (int index = 0; (cell = strsep(&rest, ",\n")); index++)
            if (index == column) snprintf(found, sizeof found, "%s", cell);
    }
    fclose(file);
    if (strcmp(found, "none") == 0) return NOT_SUPPORTED;
    if (strcmp(found, "-") == 0) return UNKNOWN;
    *value = strtoull(found, NULL, 10);
    return OK;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (getenv("FAKE_NVML_NO_DEVICE")) return NOT_FOUND;
    initialised = 1;
    return OK;
}

int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int code) {
    return code == NOT_SUPPORTED ? "Not Supported" : code == NOT_FOUND ? "Not Found" : "Unknown Error";
}

int nvmlDeviceGetCount_v2(unsigned *number) {
    *number = count();
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    if ((int)index >= count()) return INVALID_ARGUMENT;
    *device = (Device)&boards[index];
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device *device) {
    if (strncmp(uuid, "GPU-", 4)) return NOT_FOUND;
    return nvmlDeviceGetHandleByIndex_v2(atoi(uuid + 4), device);
}

int nvmlDeviceGetIndex(Device device, unsigned *index) {
    *index = device->board;
    return OK;
}

int nvmlDeviceGetTotalEnergyConsumption(Device device, unsigned long long *energy_mj) {
    uint64_t value = 0;
    int code = look(ENERGY, &value);
    *energy_mj = value * (device->board + 1);
    return code;
}

int nvmlDeviceGetPowerUsage(Device device, unsigned *power_mw) {
    uint64_t value = 0;
    int code = look(POWER, &value);
    (void)device;
    *power_mw = value;
    return code;
}

int nvmlDeviceGetMigMode(Device device, unsigned *current, unsigned *pending) {
    uint64_t value = 0;
    int code = look(MIG, &value);
    (void)device;
    *current = *pending = value;
    return code;
}

static int reasons(unsigned long long *bits) {
    uint64_t value = 0;
    int code = look(REASONS, &value);
    *bits = value;
    return code;
}

#ifdef OLD
int nvmlDeviceGetCurrentClocksThrottleReasons(Device device, unsigned long long *bits) {
    (void)device;
    return reasons(bits);
}
#else
int nvmlDeviceGetCurrentClocksEventReasons(Device device, unsigned long long *bits) {
    (void)device;
    return reasons(bits);
}

int nvmlDeviceGetFieldValues(Device device, int number, FieldValue *values) {
    (void)device;
    for (int index = 0; index < number; index++) {
        uint64_t value = 0;
        uint32_t field = values[index].field;
        int column = field == FIELD_POWER_INSTANT ? INSTANT : field == FIELD_POWER_AVERAGE ? AVERAGE : -1;
        values[index].code = column < 0 ? NOT_SUPPORTED : look(column, &value);
        values[index].value.ui = value;
    }
    return OK;
}
#endif
