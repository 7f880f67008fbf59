/* Runs the programs on the host: a line per call with its result, a line per program with its globals. */

#include <stdio.h>

typedef unsigned long long u64;

#define CALL(function, input) u64 function(u64);
#define GLOBALS(seed) extern unsigned char __start_globals_##seed[], __stop_globals_##seed[];
#include "calls.inc"
#undef CALL
#undef GLOBALS

int main(void) {
#define CALL(function, input) printf("%llx\n", function(input));
#define GLOBALS(seed)                                                                                 \
  for (unsigned char *at = __start_globals_##seed; at < __stop_globals_##seed; at++) printf("%02x", *at); \
  printf("\n");
#include "calls.inc"
  return 0;
}
