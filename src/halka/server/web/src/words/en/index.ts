import account from "./account";
import adapters from "./adapters";
import advise from "./advise";
import compare from "./compare";
import documents from "./documents";
import parts from "./parts";
import playground from "./playground";
import shell from "./shell";
import train from "./train";

export default { account, adapters, advise, compare, documents, parts, playground, shell, train };
