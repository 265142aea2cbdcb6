// The native sources without Python: `native_test [name ...]` runs all tests or those named, under whatever it was built
// with (sanitizers, another processor's emulator).

#include "check.h"

int main(int count, char** names) {
    using namespace qafila::test;
    struct Test {
        const char* name;
        void (*run)();
    };
    constexpr Test kTests[] = {
        {"formats", test_formats},     {"products", test_products}, {"elementwise", test_elementwise},
        {"attention", test_attention}, {"team", test_team},         {"forward", test_forward},
    };
    for (const Test& test : kTests) {
        bool wanted = count < 2;
        for (int i = 1; i < count; ++i) wanted = wanted || std::strcmp(names[i], test.name) == 0;
        if (!wanted) continue;
        test.run();
        std::printf("%s: ok\n", test.name);
        std::fflush(stdout);
    }
    return 0;
}
