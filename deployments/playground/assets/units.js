// How numbers read.

const INTEGER = new Intl.NumberFormat("en");
const KIB = 1024;

export function count(number) {
  return INTEGER.format(number);
}

export function counted(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

export function duration(ms) {
  if (ms < 1) return "0 ms";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
}

export function bytes(number) {
  if (number < KIB) return `${number} B`;
  if (number < KIB * KIB) return `${(number / KIB).toFixed(0)} KiB`;
  if (number < KIB ** 3) return `${(number / KIB ** 2).toFixed(1)} MiB`;
  return `${(number / KIB ** 3).toFixed(1)} GiB`;
}

export function percent(share) {
  const points = 100 * share;
  if (points > 0 && points < 1) return "<1 %";
  return `${Math.round(points)} %`;
}

/** The smallest of 1, 1.5, 2, 3, 4, 5, 6, 8 and their tens that is not below `number`. */
export function roundUp(number) {
  const ten = 10 ** Math.floor(Math.log10(number));
  const step = [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((factor) => factor * ten >= number);
  return (step ?? 10) * ten;
}

const INVISIBLE = new Map([
  [" ", "␣"],
  ["\n", "⏎"],
  ["\r", "␍"],
  ["\t", "⇥"],
]);

/** A token as one sees it, blanks at its ends included. */
export function visible(token) {
  if (token === "") return "∅";
  const isBlank = token.trim() === "";
  return [...token]
    .map((char, at, all) => {
      const isEnd = isBlank || at === 0 || at === all.length - 1;
      return char === " " && !isEnd ? char : INVISIBLE.get(char) ?? char;
    })
    .join("");
}
