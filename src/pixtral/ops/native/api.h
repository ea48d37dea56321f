// Marks a function of the C ABI. Callers check shapes and dtypes; the kernels trust what they are given.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define PX_API extern "C" __declspec(dllexport)
#else
#define PX_API extern "C" __attribute__((visibility("default")))
#endif
