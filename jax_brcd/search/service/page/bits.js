// A code as a strip of bits, drawn as three paths so that a style sheet colours them, for light and dark alike.

const ROW = 64, TALL = 8, MARK = 3.6, GAP = 2;  // bits of a row; heights of a bit, its mark and a gap, in widths of a bit
const SVG = "http://www.w3.org/2000/svg";

export const bytesOf = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
export const hexOf = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

const bit = (bytes, place) => (bytes[place >> 3] >> (7 - (place & 7))) & 1;

/** The strip of a code; bits in which it differs from `other` are marked below. */
export function strip(hex, bits, other = null) {
  const bytes = bytesOf(hex), others = other === null ? bytes : bytesOf(other);
  const paths = { zero: "", one: "", differs: "" };
  const step = TALL + GAP + (other === null ? 0 : MARK);
  let count = 0;
  for (let place = 0; place < bits; place++) {
    const x = place % ROW, y = Math.floor(place / ROW) * step, value = bit(bytes, place);
    paths[value ? "one" : "zero"] += `M${x} ${y}h.85v${TALL}h-.85z`;
    if (value !== bit(others, place)) {
      paths.differs += `M${x} ${y + TALL + .6}h.85v${MARK - .6}h-.85z`;
      count++;
    }
  }
  const drawn = document.createElementNS(SVG, "svg");
  drawn.setAttribute("class", "bits");
  drawn.setAttribute("viewBox", `0 0 ${ROW} ${Math.ceil(bits / ROW) * step}`);
  drawn.setAttribute("role", "img");
  drawn.setAttribute("aria-label", other === null ? `a code of ${bits} bits` : `${count} of ${bits} bits differ`);
  for (const [name, path] of Object.entries(paths)) {
    const part = document.createElementNS(SVG, "path");
    part.setAttribute("class", name);
    part.setAttribute("d", path);
    drawn.append(part);
  }
  return drawn;
}
