/* Stands in for the NVIDIA driver library: answers from the trace that FAKE_NVML_TRACE names, at the moment that the
   file FAKE_NVML_NOW holds. Columns: time_s, energy_mj, power_mw, instant_mw, average_mw, reasons, mig, sm_mhz,
   memory_mhz, temperature_c; a missing one is "none". "-" is an unknown error, "none" not supported, "denied" no
   permission, "lost" a board that has fallen off the bus. FAKE_NVML_BOARDS boards (1 by default) all answer alike, but
   board n's energy is n+1 times the first one's. What stays the same is in FAKE_NVML_FACTS, "name=value;name=value",
   with the same words for errors; defaults are those of FACTS. Built with -DOLD it lacks what drivers before 2023
   lack. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, LOST = 15, UNKNOWN = 999 };
enum { TIME, ENERGY, POWER, INSTANT, AVERAGE, REASONS, MIG, SM_CLOCK, MEMORY_CLOCK, TEMPERATURE };
enum { CLOCK_GRAPHICS, CLOCK_SM, CLOCK_MEMORY };
enum { FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186 };

typedef struct { int board; } *Device;
typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency_us;
    uint32_t type, code;
    union { double d; uint32_t ui; uint64_t ull; } value;
} FieldValue;

static const char *FACTS[][2] = {
    {"name", "Fake GPU"}, {"driver", "580.159"}, {"cuda", "13000"}, {"architecture", "none"}, {"compute_mode", "0"},
    {"persistence", "1"}, {"power_limit_mw", "700000"}, {"default_limit_mw", "700000"}, {"least_limit_mw", "200000"},
    {"most_limit_mw", "700000"}, {"most_sm_mhz", "1980"}, {"most_memory_mhz", "2619"}, {"bus_bits", "5120"},
    {"memory_bytes", "85520809984"}, {"used_bytes", "0"}, {"processes", ""}, {"uuid", "GPU-"}, {"numa", "0"},
    {"mig_uuid", ""},
};
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

static int code_of(const char *text, uint64_t *value) {
    static const struct { const char *word; int code; } errors[] = {
        {"none", NOT_SUPPORTED}, {"-", UNKNOWN}, {"denied", NO_PERMISSION}, {"lost", LOST},
    };
    for (unsigned index = 0; index < sizeof errors / sizeof *errors; index++)
        if (strcmp(text, errors[index].word) == 0) return errors[index].code;
    *value = strtoull(text, NULL, 10);
    return OK;
}

static void fact(const char *name, char *text, size_t size) {
    const char *given = getenv("FAKE_NVML_FACTS");
    for (unsigned index = 0; index < sizeof FACTS / sizeof *FACTS; index++)
        if (strcmp(FACTS[index][0], name) == 0) snprintf(text, size, "%s", FACTS[index][1]);
    for (char *rest = strdup(given ? given : ""), *cell; (cell = strsep(&rest, ";"));)
        if (strncmp(cell, name, strlen(name)) == 0 && cell[strlen(name)] == '=')
            snprintf(text, size, "%s", cell + strlen(name) + 1);
}

static int number(const char *name, uint64_t *value) {
    char text[256] = "none";
    fact(name, text, sizeof text);
    return code_of(text, value);
}

static int small(const char *name, unsigned *value) {
    uint64_t found = 0;
    int code = number(name, &found);
    *value = found;
    return code;
}

static int text_of(const char *name, char *text, unsigned size) {
    uint64_t unused;
    fact(name, text, size);
    return strpbrk(text, "0123456789") ? OK : code_of(text, &unused);
}

static int look(int column, uint64_t *value) {
    char line[512], found[64] = "none";
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
    return code_of(found, value);
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (getenv("FAKE_NVML_NO_DEVICE")) return NOT_FOUND;
    if (getenv("FAKE_NVML_NOT_LOADED")) return DRIVER_NOT_LOADED;
    initialised = 1;
    return OK;
}

int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int code) {
    switch (code) {
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
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
    char slice[64];
    fact("mig_uuid", slice, sizeof slice);
    if (*slice && strcmp(uuid, slice) == 0) return nvmlDeviceGetHandleByIndex_v2(0, device);
    if (strncmp(uuid, "GPU-", 4)) return NOT_FOUND;
    return nvmlDeviceGetHandleByIndex_v2(atoi(uuid + 4), device);
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device slice, Device *board) {
    *board = slice;
    return OK;
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

static int seen(int column, unsigned *found) {
    uint64_t value = 0;
    int code = look(column, &value);
    *found = value;
    return code;
}

int nvmlDeviceGetClockInfo(Device device, int kind, unsigned *mhz) {
    (void)device;
    return seen(kind == CLOCK_MEMORY ? MEMORY_CLOCK : SM_CLOCK, mhz);
}

int nvmlDeviceGetMaxClockInfo(Device device, int kind, unsigned *mhz) {
    (void)device;
    return small(kind == CLOCK_MEMORY ? "most_memory_mhz" : "most_sm_mhz", mhz);
}

int nvmlDeviceGetTemperature(Device device, int sensor, unsigned *degrees) {
    (void)device, (void)sensor;
    return seen(TEMPERATURE, degrees);
}

typedef struct { unsigned version; int sensor, degrees; } Temperature;

int nvmlDeviceGetTemperatureV(Device device, Temperature *temperature) {
    (void)device;
    return seen(TEMPERATURE, (unsigned *)&temperature->degrees);
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) { return text_of("driver", text, size); }

int nvmlSystemGetCudaDriverVersion(int *version) { return small("cuda", (unsigned *)version); }

int nvmlSystemGetCudaDriverVersion_v2(int *version) { return small("cuda", (unsigned *)version); }

int nvmlDeviceGetName(Device device, char *text, unsigned size) {
    (void)device;
    fact("name", text, size);
    return OK;
}

int nvmlDeviceGetUUID(Device device, char *text, unsigned size) {
    char start[64];
    fact("uuid", start, sizeof start);
    snprintf(text, size, "%s%d", start, device->board);
    return OK;
}

int nvmlDeviceGetArchitecture(Device device, unsigned *value) { (void)device; return small("architecture", value); }
int nvmlDeviceGetComputeMode(Device device, unsigned *value) { (void)device; return small("compute_mode", value); }
int nvmlDeviceGetPersistenceMode(Device device, unsigned *value) { (void)device; return small("persistence", value); }
int nvmlDeviceGetMemoryBusWidth(Device device, unsigned *value) { (void)device; return small("bus_bits", value); }

int nvmlDeviceGetEnforcedPowerLimit(Device device, unsigned *value) {
    (void)device;
    return small("power_limit_mw", value);
}

int nvmlDeviceGetPowerManagementLimit(Device device, unsigned *value) {
    (void)device;
    return small("power_limit_mw", value);
}

int nvmlDeviceGetPowerManagementDefaultLimit(Device device, unsigned *value) {
    (void)device;
    return small("default_limit_mw", value);
}

int nvmlDeviceGetPowerManagementLimitConstraints(Device device, unsigned *least, unsigned *most) {
    (void)device;
    int code = small("least_limit_mw", least);
    return code ? code : small("most_limit_mw", most);
}

typedef struct { unsigned long long total, free, used; } Memory;

int nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
    uint64_t total = 0, used = 0;
    int code = number("memory_bytes", &total);
    (void)device, number("used_bytes", &used);
    *memory = (Memory){total, total - used, used};
    return code;
}

typedef struct { unsigned pid; unsigned long long used_bytes; unsigned instance, compute_instance; } Process;

/* "processes" is "pid:bytes,pid:bytes". */
static int processes(unsigned *count, Process *found) {
    char text[256] = "";
    unsigned most = *count, number = 0;
    uint64_t unused;
    fact("processes", text, sizeof text);
    if (*text && !strpbrk(text, "0123456789")) return code_of(text, &unused);
    for (char *rest = text, *cell; *text && (cell = strsep(&rest, ",")); number++)
        if (number < most) found[number] = (Process){atoi(cell), strtoull(strchr(cell, ':') + 1, NULL, 10), -1, -1};
    *count = number;
    return number > most ? INSUFFICIENT_SIZE : OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count, Process *found) {
    (void)device;
    return processes(count, found);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(Device device, unsigned *count, Process *found) {
    (void)device, (void)found;
    *count = 0;
    return OK;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Device device, unsigned *count, Process *found) {
    (void)device, (void)found;
    *count = 0;
    return OK;
}

int nvmlSystemGetProcessName(unsigned pid, char *text, unsigned size) {
    snprintf(text, size, "process-%u", pid);
    return OK;
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
