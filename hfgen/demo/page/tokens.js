// Text <-> tokens, as the model's tokenizer.json says: characters with bytes as a fallback, or pairs of bytes merged
// as GPT-2 does (byte-level BPE).

const encoder = new TextEncoder();
const WORDS = /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu; // GPT-2's
const SIGNS = { " ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍" };

/** GPT-2's characters for bytes: printable ones stand for themselves, others follow from U+0100. */
function byteCharacters() {
  const characters = [];
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    characters.push(String.fromCodePoint(printable ? byte : next++));
  }
  return characters;
}

export class Tokens {
  /** @param about vocabulary (by id), kind ("characters" or "byte_level"), merges, special (ids) */
  constructor({ vocabulary, kind, merges, special }) {
    this.vocabulary = vocabulary;
    this.special = new Set(special);
    this.ids = new Map(vocabulary.map((token, id) => [token, id]));
    this.isByteLevel = kind === "byte_level";
    if (this.isByteLevel) {
      this.characters = byteCharacters();
      this.bytesOf = new Map(this.characters.map((character, byte) => [character, byte]));
      this.ranks = new Map(merges.map((pair, rank) => [pair.join(" "), rank]));
    }
  }

  /** Ids of a text, in which special tokens are ordinary text. */
  encode(text) {
    if (this.isByteLevel) return (text.match(WORDS) ?? []).flatMap((word) => this.merge(word));
    return [...text].flatMap((character) => {
      const id = this.ids.get(character);
      if (id !== undefined) return [id];
      return [...encoder.encode(character)].map((byte) => this.ids.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`));
    });
  }

  merge(word) {
    let parts = [...encoder.encode(word)].map((byte) => this.characters[byte]);
    for (;;) {
      let [best, at] = [Infinity, -1];
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) return parts.map((part) => this.ids.get(part));
      parts = [...parts.slice(0, at), parts[at] + parts[at + 1], ...parts.slice(at + 2)];
    }
  }

  bytes(id) {
    const token = this.vocabulary[id];
    if (this.special.has(id)) return new Uint8Array();
    if (this.isByteLevel) return Uint8Array.from([...token].map((character) => this.bytesOf.get(character)));
    const byte = /^<0x([0-9A-F]{2})>$/.exec(token);
    return byte ? Uint8Array.of(Number.parseInt(byte[1], 16)) : encoder.encode(token);
  }

  /** A function from one id after the other to the text that each completes, as a character may take several. */
  reader() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return (id) => decoder.decode(this.bytes(id), { stream: true });
  }

  /** A token as a person reads it alone. */
  name(id) {
    if (this.special.has(id)) return this.vocabulary[id] === "<|endoftext|>" ? "the end" : this.vocabulary[id];
    const text = new TextDecoder().decode(this.bytes(id));
    return text.includes("\ufffd") ? `byte ${[...this.bytes(id)].map((byte) => byte.toString(16)).join(" ")}` : text.replace(/[ \n\t\r]/g, (sign) => SIGNS[sign]);
  }
}
