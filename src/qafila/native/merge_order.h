// What a list of BPE merges means as ranks of tokens, with the proof that it does (text/bpe_merges.py explains it).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qafila {

struct MergeOrder {
    std::vector<std::int32_t> order;    // the token each merge makes, best rank first, each once
    std::vector<std::int32_t> unbuilt;  // those of them that the merges do not build when the token stands alone
};

// The character of GPT-2's alphabet that stands for each byte, as a code point (below 0x144), and back: -1 where none is.
struct ByteAlphabet {
    std::uint16_t letter[256];
    std::int16_t byte[0x144];
    ByteAlphabet();
};

// Appends the bytes that `text` (UTF-8) spells; false where a character is not of the alphabet.
bool unspell(const ByteAlphabet& alphabet, std::string_view text, std::string& bytes);

// `tokens` are bytes, empty where an id has no token that text can become; `merges` are two spelled parts with one
// space between. False, and nothing of use in `result`, where that is not so simple: a part or a result that is no
// token, two equal tokens or merges, a token made by merges that do not follow each other, one of more than 256
// bytes, or with a byte that is no token. The slow way knows what to make of those.
bool merge_order(const std::vector<std::string_view>& tokens, const std::vector<std::string_view>& merges,
                 MergeOrder& result);

}  // namespace qafila
