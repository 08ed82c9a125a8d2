// Tune an adapter: a draft of a training, or one job that is watched.
import "./train.css";
import type { ScreenProps } from "../screens";
import { DraftScreen } from "./draft-screen";
import { JobScreen } from "./job-screen";

export default function Train({ rest: [id] }: ScreenProps) {
  return id === undefined ? <DraftScreen /> : <JobScreen key={id} id={id} />;
}
