# The module's sources and how each is compiled, for the module itself and for the tests without Python: sets
# native_sources and native_options.
#
# A file whose name ends in an instruction set is compiled for it, all others for any processor of the architecture.
file(GLOB native_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_LIST_DIR}/*.cpp")
set(avx2_sources ${native_sources})
set(avxvnni_sources ${native_sources})
set(avx512_sources ${native_sources})
list(FILTER avx2_sources INCLUDE REGEX "_avx2\\.cpp$")
list(FILTER avxvnni_sources INCLUDE REGEX "_avxvnni\\.cpp$")
list(FILTER avx512_sources INCLUDE REGEX "_avx512\\.cpp$")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set_source_files_properties(${avx2_sources} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
  # Tests of the AVX-VNNI sources on processors that have the instruction in AVX-512's encoding only.
  option(QAFILA_VNNI_AS_AVX512 "Build the AVX-VNNI table with AVX-512's encoding" OFF)
  if(QAFILA_VNNI_AS_AVX512)
    add_compile_definitions(QAFILA_VNNI_AS_AVX512)
    set(vnni_flags "-mavx512vnni;-mavx512vl")
  else()
    set(vnni_flags "-mavxvnni")
  endif()
  set_source_files_properties(${avxvnni_sources} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;${vnni_flags}")
  # GCC 12 warns about its own _mm512_undefined_ps() in every intrinsic (its bug 105593).
  set_source_files_properties(${avx512_sources} PROPERTIES COMPILE_OPTIONS
    "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mavx512bf16;-mfma;-mf16c;-mavx2;-mprefer-vector-width=512;-Wno-maybe-uninitialized;-Wno-uninitialized")
else()
  list(REMOVE_ITEM native_sources ${avx2_sources} ${avxvnni_sources} ${avx512_sources})
endif()
# No fused multiply-add: the NumPy oracle rounds after each operation. The other two let loops vectorise and change no
# result; whatever reorders sums (-ffast-math, -fassociative-math) would.
set(native_options -O3 -Wall -Wextra -ffp-contract=off -fno-math-errno -fno-trapping-math)
