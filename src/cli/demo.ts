// fentrylab demo

import { renderTour } from "../report/tour.ts";
import { gatherTour } from "../tour.ts";
import { type CommonOptions, printJson } from "./option.ts";

export async function printDemo({ json }: CommonOptions): Promise<void> {
  const tour = await gatherTour();
  if (json) printJson(tour);
  else process.stdout.write(renderTour(tour));
}
