// Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
//
// The instruction sets that inner loops are compiled for, and the choice among them at run time.

#ifndef CLUSTR_INSTRUCTION_SETS_H
#define CLUSTR_INSTRUCTION_SETS_H

#include <cstring>

// Other compilers do not have `#pragma GCC target` and the vector types that the loops need.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define X86_VARIANTS 1
#endif

namespace {

inline bool has_avx512() {
#ifdef X86_VARIANTS
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

inline bool has_avx2() {
#ifdef X86_VARIANTS
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

// Whether `candidate` may be used for the instruction set `name`: the same one, or any for "best".
inline bool is_wanted(const char* name, const char* candidate) {
    return std::strcmp(name, "best") == 0 || std::strcmp(name, candidate) == 0;
}

}  // namespace

#endif
