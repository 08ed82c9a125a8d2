// Which method suits some data and this machine, by short probes: a form, or one advice.
import "../train/train.css";
import "./advise.css";
import type { ScreenProps } from "../screens";
import { AdviceScreen } from "./advice-screen";
import { AskScreen } from "./ask-screen";

export default function Advise({ rest: [id] }: ScreenProps) {
  return id === undefined ? <AskScreen /> : <AdviceScreen key={id} id={id} />;
}
