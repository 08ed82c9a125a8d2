import type en from "../en/account";
import type { Same } from "../words";

export default {
  title: "অ্যাকাউন্ট",
  lead: "এই সার্ভারে আপনি কে, এর কীগুলো, আর কতটা ব্যবহার হচ্ছে।",
  empty: "এখনো দেখানোর কিছু নেই",
  emptyHint: "কী আর ব্যবহারের হিসাব এখানে দেখা যাবে।",
} satisfies Same<typeof en>;
