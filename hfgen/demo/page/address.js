// The address of the page holds what is shown (#seed=7&class=3), so that a link shows it again.

export function readAddress(address = location.href) {
  return Object.fromEntries(new URLSearchParams(new URL(address).hash.slice(1)));
}

let timer = null;

/** Writes values to the address; without noise in the history, and not more often than browsers allow. */
export function writeAddress(values) {
  clearTimeout(timer);
  const before = location.hash;
  timer = setTimeout(() => {
    if (location.hash !== before) return; // somebody has followed a link meanwhile: it counts
    const given = Object.entries(values).filter(([, value]) => value !== null && value !== "");
    history.replaceState(null, "", `#${new URLSearchParams(given)}`);
  }, 250);
}
