// Files, with a count of the bytes that have come, and errors that say which file is missing.

/** Something that a person can fix; its message says what. Other errors are ours. */
export class Missing extends Error {}

const megabytes = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} KB` : `${(bytes / 1e6).toFixed(1)} MB`);

/** How much is there. `report(fraction, words)` is called as bytes come. */
export class Loading {
  constructor(total, report) {
    this.total = total;
    this.bytes = 0;
    this.report = report;
  }

  add(bytes, what) {
    this.bytes += bytes;
    const total = Math.max(this.total, this.bytes);
    this.report(this.bytes / total, `Loading ${what}: ${megabytes(this.bytes)} of ${megabytes(total)}.`);
  }

  say(words) {
    this.report(this.bytes / Math.max(this.total, this.bytes), words);
  }
}

async function request(path) {
  let response;
  try {
    response = await fetch(path);
  } catch {
    throw new Missing(`${path} could not be loaded: there is no connection to the server of this page. Is hfgen demo still running?`);
  }
  if (!response.ok) {
    throw new Missing(`${path} is missing (status ${response.status}). Write the folder again with hfgen demo.`);
  }
  return response;
}

export async function fetchJson(path) {
  const response = await request(path);
  try {
    return await response.json();
  } catch {
    throw new Missing(`${path} is damaged. Write the folder again with hfgen demo.`);
  }
}

/** The bytes of a file; `what` says in the status line what is being loaded. */
export async function fetchBytes(path, loading, what) {
  const response = await request(path);
  const parts = [];
  let length = 0;
  loading.add(0, what);
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read().catch(() => {
      throw new Missing(`${path} broke off after ${megabytes(length)}. Load the page again.`);
    });
    if (done) break;
    parts.push(value);
    length += value.length;
    loading.add(value.length, what);
  }
  const bytes = new Uint8Array(length);
  let place = 0;
  for (const part of parts) {
    bytes.set(part, place);
    place += part.length;
  }
  return bytes;
}
