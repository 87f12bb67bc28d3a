// The API key of this tab. It leaves with it.

const PLACE = "latentmas-key";
// What a header can carry; others would fail before anything is sent.
const SENDABLE = /^[\x21-\x7e]+$/;

export function currentKey() {
  return sessionStorage.getItem(PLACE);
}

/** False if it can be no key. */
export function useKey(key) {
  if (!SENDABLE.test(key)) return false;
  sessionStorage.setItem(PLACE, key);
  return true;
}

export function forgetKey() {
  sessionStorage.removeItem(PLACE);
}
