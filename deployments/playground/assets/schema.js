// How JSON schemas read: types in words, and objects as rows of a table. Draws nothing.

const MAX_DEPTH = 3;
const REFERENCE = "#/components/schemas/";

export class Schemas {
  #named;

  /** `named`: `components.schemas` of a description. */
  constructor(named) {
    this.#named = named;
  }

  /** The type of values that fit, in a few words. */
  typeOf(schema) {
    const found = this.#resolved(schema);
    if ("const" in found) return JSON.stringify(found.const);
    if (found.enum !== undefined) return found.enum.map((one) => JSON.stringify(one)).join(" or ");
    if (found.anyOf !== undefined) {
      return [...new Set(found.anyOf.map((one) => this.typeOf(one)))].join(" or ");
    }
    if (Array.isArray(found.type)) return found.type.join(" or ");
    if (found.type === "array") return `list of ${this.typeOf(found.items ?? {})}${sizeOf(found)}`;
    if (found.type === "object" && found.properties === undefined) return this.#mapped(found);
    return found.type === undefined ? "any JSON" : `${found.type}${limitsOf(found)}`;
  }

  /** [name, type, what it is] of each field, those of objects within too: `messages[].role`. */
  rowsOf(schema, prefix = "", depth = 1) {
    const rows = new Map();
    for (const { properties, required = [] } of this.#objectsIn(schema)) {
      for (const [name, field] of Object.entries(properties)) {
        const known = rows.get(name);
        const types = new Set([...(known?.types ?? []), this.typeOf(field)]);
        const isRequired = (known?.isRequired ?? true) && required.includes(name);
        rows.set(name, { types, isRequired, field });
      }
    }
    return [...rows].flatMap(([name, { types, isRequired, field }]) => {
      const path = `${prefix}${name}`;
      const own = [path, [...types].join(" or "), meaningOf(field, isRequired)];
      const inner = this.#isListed(field) ? `${path}[].` : `${path}.`;
      return [own, ...(depth < MAX_DEPTH ? this.rowsOf(field, inner, depth + 1) : [])];
    });
  }

  #resolved(schema) {
    return schema.$ref === undefined ? schema : this.#named[schema.$ref.slice(REFERENCE.length)];
  }

  /** The objects with fields that a value may be, or that it may be a list of. */
  #objectsIn(schema) {
    const found = this.#resolved(schema);
    if (found.anyOf !== undefined) return found.anyOf.flatMap((one) => this.#objectsIn(one));
    if (found.type === "array") return this.#objectsIn(found.items ?? {});
    return found.properties === undefined ? [] : [found];
  }

  #isListed(schema) {
    const found = this.#resolved(schema);
    return found.type === "array" || (found.anyOf ?? []).some((one) => this.#isListed(one));
  }

  #mapped({ additionalProperties }) {
    const isTold = typeof additionalProperties === "object";
    return isTold ? `object of ${this.typeOf(additionalProperties)}` : "object";
  }
}

function sizeOf({ minItems, maxItems }) {
  if (maxItems === undefined) return minItems === undefined ? "" : `, at least ${minItems}`;
  return minItems === undefined ? `, up to ${maxItems}` : `, ${minItems} to ${maxItems}`;
}

function limitsOf({ minimum, maximum, exclusiveMinimum }) {
  if (minimum !== undefined && maximum !== undefined) {
    return minimum === maximum ? ` ${minimum}` : ` from ${minimum} to ${maximum}`;
  }
  const parts = [
    [" from", minimum],
    [" above", exclusiveMinimum],
    [" up to", maximum],
  ];
  return parts.map(([word, limit]) => (limit === undefined ? "" : `${word} ${limit}`)).join("");
}

function meaningOf(field, isRequired) {
  const parts = isRequired ? ["required"] : [];
  const { default: ready, description } = field;
  if (ready !== undefined && ready !== null && !isEmpty(ready)) {
    parts.push(`${JSON.stringify(ready)} if it is left out`);
  }
  if (description !== undefined) parts.push(description);
  return parts.join("; ");
}

function isEmpty(value) {
  return typeof value === "object" && Object.keys(value).length === 0;
}
