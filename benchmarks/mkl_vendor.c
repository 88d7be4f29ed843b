/* Preloaded, it tells MKL that the CPU is Intel's, so that AVX-512 code runs on other vendors' too.
   Without it fp32 products take a slow path, and int8 would be compared with that. */
int mkl_serv_intel_cpu_true(void) { return 1; }
