// Numbers as pdlib.interop.packed stores them, sixteen bits each.

/** Those of every tensor of an ArrayBuffer, one tensor after another. */
export function unpack(buffer) {
  const bytes = new DataView(buffer), values = new Float32Array(buffer.byteLength / 2);
  let place = 0, filled = 0;
  while (place < buffer.byteLength) {
    const count = bytes.getUint32(place, true), low = bytes.getFloat32(place + 4, true), step = bytes.getFloat32(place + 8, true);
    place += 12;
    for (const end = filled + count; filled < end; place += 2) values[filled++] = low + step * bytes.getUint16(place, true);
  }
  return values.slice(0, filled);
}

/** What lies beside this page, or an Error that says what is missing. */
export async function load(path, as = "json") {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} is not there (${answer.status})`);
  return answer[as]();
}
