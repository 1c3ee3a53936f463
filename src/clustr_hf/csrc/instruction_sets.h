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

// One of the values VARIANT_OF(avx512), VARIANT_OF(avx2) and VARIANT_OF(portable).
#ifdef X86_VARIANTS
#define CHOOSE(VARIANT_OF, set) \
    ((set) == AVX512 ? VARIANT_OF(avx512) : (set) == AVX2 ? VARIANT_OF(avx2) : VARIANT_OF(portable))
#else
#define CHOOSE(VARIANT_OF, set) VARIANT_OF(portable)
#endif

namespace {

enum InstructionSet { NONE, PORTABLE, AVX2, AVX512 };

// The instruction set `name`, or the best one if that is "best"; NONE if this processor or build does not have it.
inline InstructionSet find_instruction_set(const char* name) {
    const auto is_wanted = [&](const char* candidate) {
        return std::strcmp(name, "best") == 0 || std::strcmp(name, candidate) == 0;
    };
#ifdef X86_VARIANTS
    if (is_wanted("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return AVX512;
    if (is_wanted("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return is_wanted("portable") ? PORTABLE : NONE;
}

}  // namespace

#endif
