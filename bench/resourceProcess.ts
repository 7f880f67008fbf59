// One measurement of bench/resources.ts in a process of its own: its name, and how often it is done.

import { MEASUREMENTS, type Measurement } from "./resources.ts";

const [name, count] = process.argv.slice(2);
process.send?.(await MEASUREMENTS[name as Measurement](Number(count)));
