// The page's screens, as the navigation lists them. A new one is an entry here, a file, its words, and its name in
// halka/server/page.py. Its icon, its words and its path all have its name.
import type { ComponentType } from "preact";
import type { Role } from "../session";

export interface ScreenProps {
  /** What follows the screen's name in the address: `["support"]` of /adapters/support. */
  rest: string[];
}

export interface Screen {
  name: "playground" | "train" | "adapters" | "compare" | "documents" | "advise" | "account";
  needs: Role;
  load: () => Promise<{ default: ComponentType<ScreenProps> }>;
}

export const screens: Screen[] = [
  { name: "playground", needs: "user", load: () => import("./playground/playground") },
  { name: "train", needs: "manager", load: () => import("./train/train") },
  { name: "adapters", needs: "user", load: () => import("./adapters/adapters") },
  { name: "compare", needs: "user", load: () => import("./compare/compare") },
  { name: "documents", needs: "user", load: () => import("./documents/documents") },
  { name: "advise", needs: "manager", load: () => import("./advise/advise") },
  { name: "account", needs: "user", load: () => import("./account/account") },
];
